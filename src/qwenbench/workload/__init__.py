"""What is sent: prompt sets, scenarios, sampling profiles, arrival schedules."""
