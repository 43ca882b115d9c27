# An S3 server for a stack under test, where MinIO's image cannot be had. Takes MinIO's arguments, keeps what it holds:
#
#   docker build -f tests/compose/s3.Dockerfile -t evergreen-s3:test tests
#   S3_IMAGE=evergreen-s3:test make up STACK=compose
FROM python:3.11-slim-bookworm
COPY s3_server.py /s3_server.py
ENTRYPOINT ["python", "/s3_server.py"]
