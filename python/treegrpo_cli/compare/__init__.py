"""Arms against each other: runs at equal budgets, their curves, statistics over seeds, tables and plots."""
