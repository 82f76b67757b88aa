"""Which model gets the traffic: the gate decides, decisions are kept, routes follow them."""
