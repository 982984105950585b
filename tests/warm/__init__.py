"""`ultralong` and `torchrun` for shell scripts under test, without their imports' seconds.

A server, one for all processes of a test run, imports torch, Megatron-Core and transformers once,
and forks itself for every program that a script starts. What runs in the fork is the program
itself: its command line, its environment, its output, its exit status and its signals. A start
costs hundredths of a second instead of seconds.
"""
