"""What lies on disk: rollout logs, tables, curation, hints, and visual entropies of data sets."""
