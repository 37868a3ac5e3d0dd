"""The control API: what can be seen and changed of a fake from outside."""
