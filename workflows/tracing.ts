import { OpenTelemetryInboundInterceptor, OpenTelemetryInternalsInterceptor, OpenTelemetryOutboundInterceptor } from '@temporalio/interceptors-opentelemetry/lib/workflow';
import { type Next, type QueryInput, workflowInfo, type WorkflowInboundCallsInterceptor, type WorkflowInterceptorsFactory } from '@temporalio/workflow';

/** Whoever watches asks twice a second: that is no part of what happens. */
class Inbound extends OpenTelemetryInboundInterceptor {
  override async handleQuery(input: QueryInput, next: Next<WorkflowInboundCallsInterceptor, 'handleQuery'>): Promise<unknown> {
    return await next(input);
  }
}

/** Only in the bundle that a control worker runs when traces are asked for (workers/tracing.ts). A host's entity takes reports for ever, and belongs to no trace. */
export const interceptors: WorkflowInterceptorsFactory = () => (workflowInfo().workflowType === 'host' ? {} : { inbound: [new Inbound()], outbound: [new OpenTelemetryOutboundInterceptor()], internals: [new OpenTelemetryInternalsInterceptor()] });
