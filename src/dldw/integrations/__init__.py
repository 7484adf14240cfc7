"""dldw in other libraries: one package for each, named as the library is."""
