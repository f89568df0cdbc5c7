"""Fuzzing: what a stranger may send is read correctly or refused in one message, never a traceback or a hang."""
