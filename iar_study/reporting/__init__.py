"""Tables, figures, pages and texts at a terminal, drawn from results; never from MLflow or a model."""
