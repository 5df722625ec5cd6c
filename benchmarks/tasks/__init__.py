"""The tasks that `training_tasks` collects, a module per kind of data or model."""
