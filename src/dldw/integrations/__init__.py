"""dldw in other people's tools."""
