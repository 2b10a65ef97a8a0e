-- Which call a task comes from: W3C traceparent, and tracestate after a space. NULL where nobody traces.
ALTER TABLE tasks ADD COLUMN trace TEXT;
