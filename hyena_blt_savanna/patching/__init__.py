"""Entropy models and the rules that cut a sequence into patches."""
