"""The maths: schedule, chain, prediction, condition, model, losses, timesteps, likelihood. Knows no network."""
