"""``python -m doorstep.engine``: the engine process."""

from doorstep.engine.process import main

main()
