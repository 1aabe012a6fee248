"""The HTTP face over the service, as OpenAI has it."""
