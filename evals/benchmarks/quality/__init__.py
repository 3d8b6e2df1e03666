"""Our optimizers beside their peers, on the same model, rows and number of calls."""
