"""Any API that takes JSON, forms or CSV over HTTP."""
