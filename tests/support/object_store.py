"""Upload a directory to an object store, as its client does, and download it with KServe's own code.

    build/deploy-tools/kserve/bin/python tests/support/object_store.py http://127.0.0.1:5000 models target

Runs in a separate environment, which has nothing of this project.
"""

import os
import sys
from pathlib import Path

import boto3
from kserve_storage import Storage

endpoint, directory, target = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
os.environ.update(
    AWS_ENDPOINT_URL=endpoint,
    AWS_ACCESS_KEY_ID="test",
    AWS_SECRET_ACCESS_KEY="test",
    AWS_DEFAULT_REGION="us-east-1",
    S3_USE_HTTPS="0",
)
store = boto3.client("s3", endpoint_url=endpoint)
store.create_bucket(Bucket="models")
# Links are followed and directories are no objects, as with every such client.
for folder, _, names in os.walk(directory, followlinks=True):
    for name in names:
        file = Path(folder) / name
        store.upload_file(str(file), "models", f"text/{file.relative_to(directory)}")
print(Storage.download("s3://models/text", target))
