"""Learning-rate schedules; every module here is found by the registry LR_SCHEDULES."""
