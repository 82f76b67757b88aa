"""What the work costs and what it saves: prices, ledger, break-even."""
