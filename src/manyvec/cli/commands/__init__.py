"""One module per command. Modules import models and the database only when their command runs."""
