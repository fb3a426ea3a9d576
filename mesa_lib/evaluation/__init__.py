"""How models and defenses are measured: accuracy, attack success rates, confidence intervals."""
