"""When a std that prompts share helps: the predicted worth of an estimator for a described structure of rewards."""
