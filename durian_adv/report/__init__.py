"""What ``durian-adv report`` makes of a rollout log: numbers, what they say, figures, a page."""
