"""From records to a better variant: SFT and RL through the Tinker API, measured and put before the gate."""
