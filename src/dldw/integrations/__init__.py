"""dldw inside other libraries, a package for each."""
