"""The pages by which an operator looks into a fake from a browser, and changes what the control API can."""
