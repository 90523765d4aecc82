"""What drives a denoiser with techniques: hooks, rows, runs, plans, and the chain at each site."""
