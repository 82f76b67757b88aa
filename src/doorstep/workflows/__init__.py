"""The named job of the business: its tasks, how a model is asked, and how one run is made."""
