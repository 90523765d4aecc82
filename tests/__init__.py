"""Tests of attnctl; they mirror the package."""
