from hypothesis import settings

pytest_plugins = ["databases"]

# A busy machine is no failure of the property.
settings.register_profile("doorstep", deadline=None)
settings.load_profile("doorstep")
