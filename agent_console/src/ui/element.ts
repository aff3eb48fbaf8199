/** The parts of Element Plus that are used, each with its own style; nothing else of it is loaded. */
import 'element-plus/es/components/base/style/css'
import 'element-plus/es/components/button/style/css'
import 'element-plus/es/components/dialog/style/css'
import 'element-plus/es/components/slider/style/css'
import 'element-plus/es/components/switch/style/css'

export { ElButton } from 'element-plus/es/components/button/index'
export { ElDialog } from 'element-plus/es/components/dialog/index'
export { ElSlider } from 'element-plus/es/components/slider/index'
export { ElSwitch } from 'element-plus/es/components/switch/index'
