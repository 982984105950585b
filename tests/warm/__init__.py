"""Programs under test, and the processes that run the tests, without their imports' seconds.

A server, one for all processes of a test run, imports torch, Megatron-Core and transformers once,
and forks itself for every `ultralong` and `torchrun` that a script starts, for every process of
pytest-xdist, and for the forkserver of each. What runs in the fork is the program itself: its
command line, its environment, its output, its exit status and its signals. A start costs hundredths
of a second instead of seconds.
"""
