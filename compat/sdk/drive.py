"""Runs the conformance checks with the SDK of this environment; one line of JSON for each, the version first.

python drive.py URL MODEL
"""

import dataclasses
import json
import logging
import sys

from doorstep.training.conformance import runner
from doorstep.training.conformance.session import Target

logging.getLogger("tinker").setLevel(logging.CRITICAL)
print(json.dumps({"sdk": runner.sdk_version()}), flush=True)
for call in runner.run(Target(sys.argv[1], "tml-compat", sys.argv[2]), runner.checks()):
    print(json.dumps(dataclasses.asdict(call)), flush=True)
