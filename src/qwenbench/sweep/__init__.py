"""The main job: plan of cells, runner, resume."""
