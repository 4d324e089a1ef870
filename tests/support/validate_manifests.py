"""Validate Kubernetes manifests strictly: unknown fields are errors. Custom resources against their definitions.

    build/deploy-tools/kubernetes/bin/python tests/support/validate_manifests.py DEFINITIONS < manifests.yaml

Runs in an environment of its own. Prints a line for each document, "ok KIND" or what is wrong; exits 1 if one is wrong.
DEFINITIONS: a directory of CustomResourceDefinitions; "" for none: then custom resources are "unknown KIND".
"""

import sys
from pathlib import Path

import jsonschema
import kubernetes_validate
import yaml


def strict(schema):
    """A definition as a JSON schema that forbids what it does not name, as strict kubectl does."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    result = {key: strict(value) for key, value in schema.items() if key != "format"}
    if "properties" in schema and isinstance(schema["properties"], dict):
        result["properties"] = {name: strict(value) for name, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields") and "additionalProperties" not in schema:
            result["additionalProperties"] = False
    return result


def definition(directory, api_version, kind):
    """The schema of a custom resource; None without one."""
    group, _, wanted = api_version.partition("/")
    # Named as controller-gen does.
    file = Path(directory, f"{group}_{kind.lower()}s.yaml")
    if not directory or not file.exists():
        return None
    # libyaml's loader: PyYAML's own takes 20 seconds for KServe's two megabytes.
    spec = yaml.load(file.read_text(encoding="utf-8"), yaml.CSafeLoader)["spec"]
    (version,) = (version for version in spec["versions"] if version["name"] == wanted)
    schema = strict(version["schema"]["openAPIV3Schema"])
    # Kubernetes' own, which a definition only mentions.
    schema["properties"] |= {"apiVersion": {}, "kind": {}, "metadata": {}}
    return schema


def main():
    wrong = 0
    for document in filter(None, yaml.safe_load_all(sys.stdin.read())):
        kind = document["kind"]
        try:
            if schema := definition(sys.argv[1], document["apiVersion"], kind):
                jsonschema.Draft202012Validator(schema).validate(document)
            else:
                kubernetes_validate.validate(document, "1.37", strict=True)
            print(f"ok {kind}")
        except kubernetes_validate.SchemaNotFoundError:
            print(f"unknown {kind}")
        except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as error:
            wrong = 1
            where = "/".join(map(str, error.path))
            print(f"wrong {kind} {where}: {error.message.splitlines()[0][:200]}")
    sys.exit(wrong)


if __name__ == "__main__":
    main()
