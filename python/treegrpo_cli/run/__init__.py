"""A run's life: the loop on a page, session, evaluation, metrics, the run's folder, stopping."""
