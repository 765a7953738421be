"""Everything that draws: reports, plots, rendered videos."""
