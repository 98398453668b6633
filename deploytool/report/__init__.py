"""What people look at: tables, plots, the summary of a pipeline."""
