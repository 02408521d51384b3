"""Center rules, one file each; a file here is found by the registry CENTER_RULES."""
