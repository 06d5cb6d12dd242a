import { diag, DiagLogLevel, trace } from '@opentelemetry/api';
import { AsyncLocalStorageContextManager } from '@opentelemetry/context-async-hooks';
import { W3CTraceContextPropagator } from '@opentelemetry/core';
import { OTLPTraceExporter } from '@opentelemetry/exporter-trace-otlp-proto';
import { envDetectorSync, Resource } from '@opentelemetry/resources';
import { BasicTracerProvider, BatchSpanProcessor } from '@opentelemetry/sdk-trace-base';
import type { ClientInterceptors, Next, WorkflowClientInterceptor, WorkflowDescribeInput, WorkflowQueryInput } from '@temporalio/client';
import { OpenTelemetryWorkflowClientInterceptor } from '@temporalio/interceptors-opentelemetry/lib/client';
import { makeWorkflowExporter, OpenTelemetryActivityInboundInterceptor } from '@temporalio/interceptors-opentelemetry/lib/worker';
import type { ActivityInterceptorsFactory, WorkerOptions } from '@temporalio/worker';

export interface Tracing {
  client: ClientInterceptors;
  /** For a worker that runs activities, and one that runs workflows too. */
  activities: Pick<WorkerOptions, 'interceptors'>;
  workflows: Pick<WorkerOptions, 'interceptors' | 'sinks'>;
  flush: () => Promise<void>;
}

/** Whoever watches asks twice a second: that is no part of what happens. */
class ClientInterceptor extends OpenTelemetryWorkflowClientInterceptor {
  override async query(input: WorkflowQueryInput, next: Next<WorkflowClientInterceptor, 'query'>): Promise<unknown> {
    return await next(input);
  }

  override async describe(input: WorkflowDescribeInput, next: Next<WorkflowClientInterceptor, 'describe'>): ReturnType<typeof next> {
    return await next(input);
  }
}

/** Sends spans by OTLP over HTTP to where the standard OTEL_* variables say, with their headers, sampler, batches and resource attributes. Throws if they ask for another protocol. */
export function startTracing(service: string, warn: (message: string) => void): Tracing {
  const protocol = process.env['OTEL_EXPORTER_OTLP_TRACES_PROTOCOL'] ?? process.env['OTEL_EXPORTER_OTLP_PROTOCOL'] ?? 'http/protobuf';
  if (protocol !== 'http/protobuf') throw new Error(`OTEL_EXPORTER_OTLP_PROTOCOL: traces are sent by http/protobuf alone, not by "${protocol}": leave it out, and give the collector's HTTP port (4318)`);
  diag.setLogger({ error: warn, warn, info: () => undefined, debug: () => undefined, verbose: () => undefined }, DiagLogLevel.WARN);
  const resource = Resource.default().merge(new Resource({ 'service.name': service })).merge(new Resource(envDetectorSync.detect().attributes));
  const processor = new BatchSpanProcessor(new OTLPTraceExporter());
  const provider = new BasicTracerProvider({ resource, spanProcessors: [processor] });
  provider.register({ contextManager: new AsyncLocalStorageContextManager().enable(), propagator: new W3CTraceContextPropagator() });
  const activity: ActivityInterceptorsFactory[] = [
    (context) => ({ inbound: new OpenTelemetryActivityInboundInterceptor(context) }),
    // An activity's queue is its host's name.
    ({ info }) => ({
      inbound: {
        execute: async (input, next) => {
          trace.getActiveSpan()?.setAttribute('vmferry.host', info.taskQueue);
          return await next(input);
        },
      },
    }),
  ];
  return {
    client: { workflow: [new ClientInterceptor()] },
    activities: { interceptors: { activity } },
    workflows: { interceptors: { activity }, sinks: { exporter: makeWorkflowExporter(processor, resource) } },
    flush: () => provider.forceFlush(),
  };
}
