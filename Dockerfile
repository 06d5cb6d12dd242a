# The images of docker-compose.yml; docs/deployment.md says what each is for. No BuildKit feature is used: any Docker builds it. amd64 only.
ARG BASE=node:20.20.2-bookworm-slim

FROM ${BASE} AS build
WORKDIR /build
COPY package.json package-lock.json ./
# Not `npm ci`: see scripts/setup.sh.
RUN npm install --no-save --no-audit --no-fund --loglevel=error
COPY tsconfig.json tsconfig.build.json ./
COPY bin bin
COPY qmp qmp
COPY hypervisor hypervisor
COPY activities activities
COPY workflows workflows
COPY workers workers
COPY client client
COPY demo demo
# The SDK brings its core for five platforms, 28 MB each.
RUN npm run --silent build && npm prune --omit=dev --no-audit --no-fund --loglevel=error && rm -rf dist/demo && \
    find dist -name '*.map' -delete && \
    find node_modules/@temporalio/core-bridge/releases -mindepth 1 -maxdepth 1 ! -name "$(uname -m)-unknown-linux-gnu" -exec rm -rf {} +

# The demo guest: it writes to its disks all the while, and checks every block when asked.
FROM ${BASE} AS guest
RUN apt-get update -q && apt-get install -q -y --no-install-recommends gcc libc6-dev xz-utils zstd
COPY demo/guest/init.c demo/guest/build.sh /guest/
RUN apt-get update -q && /guest/build.sh /out/boot

# Stands for a machine: holds its network, its process ids and its QEMUs. Nothing in it changes with vmferry but for the launcher, so an upgrade
# leaves its container, and the guests in it, alone.
FROM ${BASE} AS hypervisor
RUN apt-get update -q && apt-get install -q -y --no-install-recommends qemu-system-x86 qemu-utils iproute2 tini && rm -rf /var/lib/apt/lists/* && \
    useradd --system --uid 10001 --user-group --home-dir /var/lib/vmferry --shell /usr/sbin/nologin vmferry && \
    install -d -o vmferry -g vmferry -m 700 /var/lib/vmferry /run/vmferry /srv/images /etc/vmferry/tls
COPY --from=guest /out/boot /srv/boot
COPY deploy/container/hypervisor.sh deploy/container/healthy.js /usr/local/lib/vmferry/
COPY --from=build /build/node_modules/zod /usr/local/lib/vmferry/node_modules/zod
COPY --from=build /build/dist/hypervisor/launcher-main.js /build/dist/hypervisor/launch-request.js /build/dist/hypervisor/start-here.js /build/dist/hypervisor/child-environment.js /usr/local/lib/vmferry/
USER vmferry
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s CMD ["node", "/usr/local/lib/vmferry/healthy.js", "launcher", "/run/vmferry/launcher.sock"]
ENTRYPOINT ["tini", "--", "/usr/local/lib/vmferry/hypervisor.sh", "/run/vmferry/launcher.sock"]

FROM hypervisor AS agent
COPY deploy/container/demo-guest.sh /usr/local/lib/vmferry/
COPY --from=build /build/package.json /opt/vmferry/
COPY --from=build /build/node_modules /opt/vmferry/node_modules
COPY --from=build /build/bin /opt/vmferry/bin
COPY --from=build /build/dist /opt/vmferry/dist
ENV PATH=/opt/vmferry/bin:$PATH NODE_ENV=production VMFERRY_METRICS=0.0.0.0:9464
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["node", "/usr/local/lib/vmferry/healthy.js", "worker", "http://127.0.0.1:9464/metrics"]
ENTRYPOINT ["vmferry"]
CMD ["agent", "--config", "/etc/vmferry/agent.yaml"]

# The control worker and the command line.
FROM ${BASE} AS control
RUN useradd --system --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin vmferry && \
    install -d -o vmferry -g vmferry -m 700 /certs/ca /certs/host-a /certs/host-b
COPY deploy/container/healthy.js deploy/container/certs.sh /usr/local/lib/vmferry/
COPY --from=build /build/package.json /opt/vmferry/
COPY --from=build /build/node_modules /opt/vmferry/node_modules
COPY --from=build /build/bin /opt/vmferry/bin
COPY --from=build /build/dist /opt/vmferry/dist
ENV PATH=/opt/vmferry/bin:$PATH NODE_ENV=production
USER vmferry
ENTRYPOINT ["vmferry"]
CMD ["control"]
