"""Tests of dldw."""
