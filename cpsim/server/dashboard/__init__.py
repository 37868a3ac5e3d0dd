"""The dashboard: pages that show a fake in a browser, and forms that change it."""
