"""Feast plug-ins that work in any Feast repository; `pit` is the point-in-time offline store."""
