#!/usr/bin/env bash
# Renders the chart to orlop.yaml beside this, for those without Helm. With --check it only says whether that is current.
set -euo pipefail
cd "$(dirname "$0")"

rendered() {
    cat <<'YAML'
# From deploy/chart and its default values, by render.sh: not to be edited.
#   kubectl create namespace orlop
#   kubectl --namespace orlop create secret generic orlop-peers --from-literal=secret="$(openssl rand -base64 32)"
#   kubectl apply --server-side --filename orlop.yaml
# After a chart or manifests of another version, which own what differs: the last one with --force-conflicts.
# The Secret is what the engines prove to each other; their pods wait until it is there.
# Never delete by this file: with the definitions go all records of where the data is. The programs alone go by
#   kubectl delete namespace orlop
#   kubectl delete clusterrole,clusterrolebinding,csidriver,storageclass,validatingadmissionpolicy,validatingadmissionpolicybinding --selector app.kubernetes.io/name=orlop
---
apiVersion: v1
kind: Namespace
metadata:
  name: orlop
  labels:
    # The pods on the nodes mount.
    pod-security.kubernetes.io/enforce: privileged
YAML
    "${HELM:-helm}" template orlop ../chart --namespace orlop --set peers.create=false
}

if [[ ${1-} != --check ]]; then
    rendered >orlop.yaml.new
    mv orlop.yaml.new orlop.yaml
elif ! diff --unified=1 orlop.yaml <(rendered); then
    echo "deploy/manifests/orlop.yaml is not what the chart says; look at the change, then run deploy/manifests/render.sh" >&2
    exit 1
fi
