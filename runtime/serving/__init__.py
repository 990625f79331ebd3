"""Requests, sessions and steps: admission, the scheduler, the loop that drives the worker. No tensors."""
