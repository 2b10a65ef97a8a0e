"""What is told to OpenTelemetry: by its API alone, and nothing where nobody records. Its SDK is the user's choice."""
