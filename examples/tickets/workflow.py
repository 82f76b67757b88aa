"""Messages of tenants to a property manager: which team, which flat, and whether it cannot wait."""

SYSTEM = "label: plumber|electrician|locksmith|cleaning|office"
COLUMNS = ["team", "flat", "urgent"]
MAX_TOKENS = 40
