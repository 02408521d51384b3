"""Center rules; every module here is found by the registry CENTER_RULES."""
