"""vLLM as it is launched: options to argv, launchers, start-up log, readiness, stop, failures explained."""
